"""Everything that knows Ray: pools of actors, bounded streams of tasks, what the cluster has, telemetry, failures."""
