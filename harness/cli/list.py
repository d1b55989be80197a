"""`harness list`: list the plugins."""

from __future__ import annotations

import click

from harness.types import HarnessError


@click.command(name="list")
@click.argument("kind", required=False)
@click.option("--all", "everything", is_flag=True, help="With what the attack libraries ship.")
def list_plugins(kind: str | None, everything: bool) -> None:
    """List all attacks, defenses, models, datasets and estimators, one line each.

    \b
    harness list attacks --all
    """
    from harness import registry

    kinds = {
        each.kind + "s": each
        for each in (
            registry.attacks,
            registry.defenses,
            registry.models,
            registry.datasets,
            registry.estimators,
        )
    }
    if kind is not None and kind not in kinds:
        raise HarnessError(f"no kind of plugin is called {kind!r}: there are {', '.join(kinds)}")
    registry.defenses.names()  # the defenses that use estimators register them
    for name, each in kinds.items():
        if kind not in (None, name):
            continue
        click.echo(f"{name}:")
        width = max((len(entry.name) for entry in each), default=0)
        for entry in each:
            click.echo(f"  {entry.name:<{width}}  {entry.summary}  [{entry.origin}]")
        for prefix, make in each.bridges().items():
            summary = (make.__doc__ or "").strip().split("\n")[0]
            click.echo(f"  {prefix}:...  {summary}")
            listing = getattr(make, "listing", None)
            for label, line, refusal in listing() if everything and listing else ():
                click.echo(f"    {label}  {f'refused: {refusal}' if refusal else line}")
