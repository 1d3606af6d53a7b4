import sqlalchemy as sa
from alembic import op

revision, down_revision = "r05", "r04"

state = sa.Enum("new", "paid", name="order_state")


def upgrade():
    state.create(op.get_bind())
    op.add_column("orders", sa.Column("state", state, server_default="new"))
    op.alter_column("orders", "id", type_=sa.BigInteger)
    op.alter_column("customer", "display_name", type_=sa.String(80))
    op.create_unique_constraint("one_name", "customer", ["display_name"])
