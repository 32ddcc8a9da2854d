"""What scores completions: functions, verifiers, reward models, judges; several of them weighted, behind guards."""
