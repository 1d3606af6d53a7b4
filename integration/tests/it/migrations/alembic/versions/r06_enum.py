from alembic import op

revision, down_revision = "r06", "r05"


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("ALTER TYPE order_state ADD VALUE 'sent'")
    op.create_check_constraint("positive", "orders", "amount >= 0")
    op.execute("CREATE VIEW open_orders AS SELECT id, amount FROM orders WHERE state <> 'sent'")
