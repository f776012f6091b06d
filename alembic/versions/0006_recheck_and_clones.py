"""clones of trials; studies from before the recheck go without it

Revision: 0006
Follows: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None

_studies = sa.table('studies', sa.column('id', sa.String), sa.column('spec', sa.JSON))


def upgrade() -> None:
    op.add_column('trials', sa.Column('cloned_from', sa.String(length=32), nullable=True))
    op.add_column('trials', sa.Column('start_from', sa.Text(), nullable=True))
    connection = op.get_bind()
    for study_id, spec in connection.execute(sa.select(_studies.c.id, _studies.c.spec)).all():
        search = {**spec.get('search', {}), 'recheck': 'none'}
        changed = sa.update(_studies).where(_studies.c.id == study_id).values(spec={**spec, 'search': search})
        connection.execute(changed)


def downgrade() -> None:
    connection = op.get_bind()
    for study_id, spec in connection.execute(sa.select(_studies.c.id, _studies.c.spec)).all():
        search = {name: value for name, value in spec.get('search', {}).items() if name != 'recheck'}
        changed = sa.update(_studies).where(_studies.c.id == study_id).values(spec={**spec, 'search': search})
        connection.execute(changed)
    op.drop_column('trials', 'start_from')
    op.drop_column('trials', 'cloned_from')
