"""Run scenarios on real pairs: testbed, environment, engine, runner, batches, results."""
