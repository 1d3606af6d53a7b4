import sqlalchemy as sa
from alembic import op

revision, down_revision = "r03", "r02"


def upgrade():
    op.add_column("customer", sa.Column("first_name", sa.Text))
    op.execute("UPDATE customer SET first_name = upper(name)")
    op.alter_column("customer", "first_name", nullable=False)
    op.drop_column("customer", "mail")
