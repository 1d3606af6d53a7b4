import sqlalchemy as sa
from alembic import op

revision, down_revision = "r02", "r01"


def upgrade():
    op.add_column("customer", sa.Column("since", sa.DateTime(timezone=True), server_default=sa.func.now()))
    op.add_column("customer", sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()))
    op.alter_column("customer", "active", server_default=None)
    op.create_index("purchase_customer", "purchase", ["customer_id"])
