from alembic import op

revision, down_revision = "r04", "r03"


def upgrade():
    op.alter_column("customer", "name", new_column_name="display_name")
    op.rename_table("purchase", "orders")
    op.execute("ALTER SEQUENCE purchase_id_seq RENAME TO orders_id_seq")
