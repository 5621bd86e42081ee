"""The only place where the parts meet: Prefect flows, profiles, command line."""
