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

_studies = sa.table('studies', sa.column('id', sa.String), sa.column('spec', sa.JSON))
_KEYS = (('search', 'prior'), ('search', 'repeats'), ('adapter', 'groups'), ('search_space', 'target_modules'))


def upgrade() -> None:
    with op.batch_alter_table('studies') as batch:
        batch.add_column(sa.Column('group_id', sa.String(length=32), nullable=True))
        batch.add_column(sa.Column('grouping', sa.JSON(), nullable=True))
    with op.batch_alter_table('leases') as batch:
        batch.add_column(sa.Column('total_steps', sa.Integer(), nullable=True))
    op.create_index(op.f('ix_studies_group_id'), 'studies', ['group_id'])


def downgrade() -> None:
    # The release before reads no key that it does not know.
    connection = op.get_bind()
    for study_id, spec in connection.execute(sa.select(_studies.c.id, _studies.c.spec)).all():
        changed = {name: dict(spec.get(name) or {}) for name in ('search', 'adapter', 'search_space')}
        for section, key in _KEYS:
            changed[section].pop(key, None)
        start = changed['search'].get('start')
        if start is not None:
            # The trials of these entries exist already; one with groups would have no sizes left.
            kept = [entry for entry in start if not (isinstance(entry, dict) and 'groups' in entry)]
            changed['search']['start'] = [
                {k: v for k, v in entry.items() if k != 'target_modules'} if isinstance(entry, dict) else entry
                for entry in kept
            ]
        connection.execute(sa.update(_studies).where(_studies.c.id == study_id).values(spec={**spec, **changed}))
    op.drop_index(op.f('ix_studies_group_id'), 'studies')
    with op.batch_alter_table('leases') as batch:
        batch.drop_column('total_steps')
    with op.batch_alter_table('studies') as batch:
        batch.drop_column('grouping')
        batch.drop_column('group_id')
