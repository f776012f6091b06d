"""durable service

Revision: 0002
Follows: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('audit_log',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('team_id', sa.String(length=32), nullable=True),
    sa.Column('token_id', sa.String(length=32), nullable=False),
    sa.Column('token', sa.String(length=200), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('request_id', sa.String(length=64), nullable=False),
    sa.Column('action', sa.String(length=64), nullable=False),
    sa.Column('target', sa.String(length=200), nullable=False),
    sa.Column('detail', sa.JSON(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_log'))
    )
    op.create_index(op.f('ix_audit_log_team_id_id'), 'audit_log', ['team_id', 'id'])

    op.create_table('idempotency_keys',
    sa.Column('scope', sa.String(length=64), nullable=False),
    sa.Column('key', sa.String(length=255), nullable=False),
    sa.Column('request', sa.String(length=64), nullable=False),
    sa.Column('status', sa.Integer(), nullable=False),
    sa.Column('content', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('scope', 'key', name=op.f('pk_idempotency_keys'))
    )
    op.create_index(op.f('ix_idempotency_keys_created_at'), 'idempotency_keys', ['created_at'])

    op.create_table('webhooks',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('team_id', sa.String(length=32), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('events', sa.JSON(), nullable=False),
    sa.Column('secret', sa.String(length=100), nullable=False),
    sa.Column('active', sa.Boolean(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['team_id'], ['teams.id'], name=op.f('fk_webhooks_team_id_teams'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhooks'))
    )
    op.create_index(op.f('ix_webhooks_team_id'), 'webhooks', ['team_id'])

    op.create_table('events',
    sa.Column('study_id', sa.String(length=32), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('kind', sa.String(length=32), nullable=False),
    sa.Column('data', sa.JSON(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['study_id'], ['studies.id'], name=op.f('fk_events_study_id_studies'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('study_id', 'number', name=op.f('pk_events'))
    )
    op.create_index(op.f('ix_events_at'), 'events', ['at'])

    op.create_table('study_counts',
    sa.Column('study_id', sa.String(length=32), nullable=False),
    sa.Column('phase', sa.String(length=16), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('count', sa.Integer(), nullable=False),
    sa.ForeignKeyConstraint(['study_id'], ['studies.id'], name=op.f('fk_study_counts_study_id_studies'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('study_id', 'phase', 'state', name=op.f('pk_study_counts'))
    )
    op.create_table('webhook_deliveries',
    sa.Column('id', sa.String(length=32), nullable=False),
    sa.Column('webhook_id', sa.String(length=32), nullable=False),
    sa.Column('study_id', sa.String(length=32), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('kind', sa.String(length=32), nullable=False),
    sa.Column('body', sa.JSON(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('next_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('status', sa.Integer(), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('delivered_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['webhook_id'], ['webhooks.id'], name=op.f('fk_webhook_deliveries_webhook_id_webhooks'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_deliveries'))
    )
    op.create_index(op.f('ix_webhook_deliveries_state_next_at'), 'webhook_deliveries', ['state', 'next_at'])
    op.create_index(op.f('ix_webhook_deliveries_webhook_id_id'), 'webhook_deliveries', ['webhook_id', 'id'])

    op.add_column('leases', sa.Column('progress_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('leases', sa.Column('progress_step', sa.Integer(), nullable=False, server_default='-1'))

    op.add_column('runners', sa.Column('team_id', sa.String(length=32), nullable=True))

    op.add_column('studies', sa.Column('revision', sa.Integer(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('priority', sa.Integer(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('concurrency', sa.Integer(), nullable=False, server_default='1'))
    op.add_column('studies', sa.Column('planned', sa.Integer(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('cpus', sa.Double(), nullable=False, server_default='1'))
    op.add_column('studies', sa.Column('gpus', sa.Double(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('model_key', sa.Text(), nullable=False, server_default=''))
    op.add_column('studies', sa.Column('storage_bytes', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('gpu_seconds', sa.Double(), nullable=False, server_default='0'))
    op.add_column('studies', sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True))

    op.add_column('teams', sa.Column('weight', sa.Double(), nullable=False, server_default='1'))
    op.add_column('teams', sa.Column('max_running_trials', sa.Integer(), nullable=True))
    op.add_column('teams', sa.Column('max_gpus', sa.Double(), nullable=True))
    op.add_column('teams', sa.Column('max_studies', sa.Integer(), nullable=True))
    op.add_column('teams', sa.Column('max_storage_bytes', sa.BigInteger(), nullable=True))

    op.add_column('trials', sa.Column('attrs', sa.JSON(), nullable=True))
    op.add_column('trials', sa.Column('curve', sa.JSON(), nullable=False, server_default='[]'))
    op.add_column('trials', sa.Column('artifact_bytes', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('trials', sa.Column('version', sa.Integer(), nullable=False, server_default='0'))
    op.drop_index(op.f('ix_trials_state'), table_name='trials')
    op.drop_index(op.f('ix_trials_study_id_state'), table_name='trials')
    op.create_index(op.f('ix_trials_study_id_phase_version'), 'trials', ['study_id', 'phase', 'version'])
    op.create_index(op.f('ix_trials_study_id_state_number'), 'trials', ['study_id', 'state', 'number'])
    _fill(op.get_bind())


_studies = sa.table(
    'studies',
    sa.column('id'), sa.column('spec', sa.JSON), sa.column('concurrency'), sa.column('planned'), sa.column('cpus'),
    sa.column('gpus'), sa.column('model_key'),
)
_trials = sa.table(
    'trials', sa.column('id'), sa.column('study_id'), sa.column('phase'), sa.column('state'), sa.column('curve', sa.JSON)
)
_metrics = sa.table(
    'metrics', sa.column('trial_id'), sa.column('name'), sa.column('step'), sa.column('value')
)
_counts = sa.table(
    'study_counts', sa.column('study_id'), sa.column('phase'), sa.column('state'), sa.column('count')
)


def _fill(connection: sa.Connection) -> None:
    """What the new columns and counts say of studies and trials that are there already."""
    for study_id, spec in connection.execute(sa.select(_studies.c.id, _studies.c.spec)).all():
        search, resources, model = spec['search'], spec['resources'], spec['model']
        connection.execute(
            sa.update(_studies).where(_studies.c.id == study_id).values(
                concurrency=search['concurrency'],
                planned=search['trials'],
                cpus=resources['cpus'],
                gpus=resources['gpus'],
                model_key=f"{model['path']}@{model['revision'] or 'main'}",
            )
        )
        objectives = spec.get('objectives') or [{'metric': spec['task']['metric']}]
        _fill_curves(connection, study_id, objectives[0]['metric'])
    connection.execute(
        sa.insert(_counts).from_select(
            ['study_id', 'phase', 'state', 'count'],
            sa.select(_trials.c.study_id, _trials.c.phase, _trials.c.state, sa.func.count()).group_by(
                _trials.c.study_id, _trials.c.phase, _trials.c.state
            ),
        )
    )


def _fill_curves(connection: sa.Connection, study_id: str, metric: str) -> None:
    values = connection.execute(
        sa.select(_metrics.c.trial_id, _metrics.c.value)
        .join(_trials, _trials.c.id == _metrics.c.trial_id)
        .where(_trials.c.study_id == study_id, _metrics.c.name == metric)
        .order_by(_metrics.c.trial_id, _metrics.c.step)
    ).all()
    curves: dict[str, list[float]] = {}
    for trial_id, value in values:
        curves.setdefault(trial_id, []).append(value)
    for trial_id, curve in curves.items():
        connection.execute(sa.update(_trials).where(_trials.c.id == trial_id).values(curve=curve))


def downgrade() -> None:
    op.drop_index(op.f('ix_trials_study_id_state_number'), table_name='trials')
    op.drop_index(op.f('ix_trials_study_id_phase_version'), table_name='trials')
    op.create_index(op.f('ix_trials_study_id_state'), 'trials', ['study_id', 'state'])
    op.create_index(op.f('ix_trials_state'), 'trials', ['state'])
    op.drop_column('trials', 'version')
    op.drop_column('trials', 'artifact_bytes')
    op.drop_column('trials', 'curve')
    op.drop_column('trials', 'attrs')

    op.drop_column('teams', 'max_storage_bytes')
    op.drop_column('teams', 'max_studies')
    op.drop_column('teams', 'max_gpus')
    op.drop_column('teams', 'max_running_trials')
    op.drop_column('teams', 'weight')

    op.drop_column('studies', 'deleted_at')
    op.drop_column('studies', 'gpu_seconds')
    op.drop_column('studies', 'storage_bytes')
    op.drop_column('studies', 'model_key')
    op.drop_column('studies', 'gpus')
    op.drop_column('studies', 'cpus')
    op.drop_column('studies', 'planned')
    op.drop_column('studies', 'concurrency')
    op.drop_column('studies', 'priority')
    op.drop_column('studies', 'revision')

    op.drop_column('runners', 'team_id')

    op.drop_column('leases', 'progress_step')
    op.drop_column('leases', 'progress_at')

    op.drop_index(op.f('ix_webhook_deliveries_webhook_id_id'), table_name='webhook_deliveries')
    op.drop_index(op.f('ix_webhook_deliveries_state_next_at'), table_name='webhook_deliveries')

    op.drop_table('webhook_deliveries')
    op.drop_table('study_counts')
    op.drop_index(op.f('ix_events_at'), table_name='events')

    op.drop_table('events')
    op.drop_index(op.f('ix_webhooks_team_id'), table_name='webhooks')

    op.drop_table('webhooks')
    op.drop_index(op.f('ix_idempotency_keys_created_at'), table_name='idempotency_keys')

    op.drop_table('idempotency_keys')
    op.drop_index(op.f('ix_audit_log_team_id_id'), table_name='audit_log')

    op.drop_table('audit_log')
