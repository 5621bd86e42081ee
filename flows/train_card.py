"""The model card of a training: the README.md beside the weights that model hubs and readers of a folder look for."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.train_record import TrainRecord

HUB_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "llama3", "gemma")


def model_card(record: TrainRecord) -> str:
    """Markdown with the hub's YAML header; raises ValueError for a training that has not ended."""
    if record.outcome is None:
        raise ValueError("a model card tells how a training ended; this one has not")
    # Markdown, not HTML: nothing in it is escaped but what would break a table
    environment = Environment(  # noqa: S701
        loader=PackageLoader("flows", "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template("model_card.md.jinja").render(
        label=record.outcome.label,
        run=record.run,
        profile=record.run.profile,
        settings=record.run.profile.settings,
        outcome=record.outcome,
        license=hub_license(record),
    )


def hub_license(record: TrainRecord) -> str:
    """The licence of the base in the hub's name where all its parts share one that it knows, else `other`."""
    names = {label.license.strip().lower() for label in record.run.base}
    only = names.pop() if len(names) == 1 else ""
    return only if only in HUB_LICENSES else "other"
