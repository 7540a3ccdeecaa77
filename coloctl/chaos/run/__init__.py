"""Play scenarios on real pairs: testbed, stage, engine, runner, batches, results."""
