"""groups of studies; how many steps a running trial will make

Revision: 0007
Follows: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('studies') as batch:
        batch.add_column(sa.Column('group_id', sa.String(length=32), nullable=True))
        batch.add_column(sa.Column('grouping', sa.JSON(), nullable=True))
    with op.batch_alter_table('leases') as batch:
        batch.add_column(sa.Column('total_steps', sa.Integer(), nullable=True))
    op.create_index(op.f('ix_studies_group_id'), 'studies', ['group_id'])


def downgrade() -> None:
    op.drop_index(op.f('ix_studies_group_id'), 'studies')
    with op.batch_alter_table('leases') as batch:
        batch.drop_column('total_steps')
    with op.batch_alter_table('studies') as batch:
        batch.drop_column('grouping')
        batch.drop_column('group_id')
