import sqlalchemy as sa
from alembic import op

revision, down_revision = "r01", None


def upgrade():
    op.create_table(
        "customer",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("mail", sa.Text),
    )
    op.create_table(
        "purchase",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer_id", sa.BigInteger, sa.ForeignKey("customer.id")),
        sa.Column("amount", sa.Numeric(10, 2), server_default="0"),
    )
    op.bulk_insert(sa.table("customer", sa.column("name", sa.String)), [{"name": f"c{i}"} for i in range(200)])
