"""resource shapes beyond CPUs and GPUs; hosts by team

Revision: 0004
Follows: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('studies', sa.Column('shape', sa.JSON(), nullable=True))
    op.add_column('runners', sa.Column('shape', sa.JSON(), nullable=True))
    op.rename_table('hosts', 'hosts_0003')
    op.create_table('hosts',
    sa.Column('team_id', sa.String(length=32), nullable=False),
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('failures', sa.Integer(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('failed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('quarantined_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('team_id', 'name', name='pk_hosts_by_team')
    )
    op.execute("INSERT INTO hosts (team_id, name, failures, reason, quarantined_at) "
               "SELECT '', name, failures, reason, quarantined_at FROM hosts_0003")
    op.drop_table('hosts_0003')


def downgrade() -> None:
    op.rename_table('hosts', 'hosts_0004')
    op.create_table('hosts',
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('failures', sa.Integer(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('quarantined_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('name', name='pk_hosts')
    )
    op.execute("INSERT INTO hosts (name, failures, reason, quarantined_at) "
               "SELECT name, max(failures), max(reason), max(quarantined_at) FROM hosts_0004 GROUP BY name")
    op.drop_table('hosts_0004')
    op.drop_column('runners', 'shape')
    op.drop_column('studies', 'shape')
