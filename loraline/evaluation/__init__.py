"""From answers to a verdict: metrics, intervals, rules, the report."""
