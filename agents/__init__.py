"""The five roles of the data engine, as plain classes that know no orchestrator."""
