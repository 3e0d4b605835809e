"""
`gear --help` and `gear help`: commands in the order in which a user meets them.
"""

from __future__ import annotations

import click

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Make and publish Gear images", ("build", "push")),
    ("See what there is", ("images", "inspect")),
    ("Use one without a Gear engine", ("fs", "restore")),
    ("Run a node", ("graphdriver", "client", "leave")),
    ("Run a cluster", ("manager", "token", "nodes")),
    ("When something is wrong, and for your shell", ("doctor", "help", "completion")),
)


class TeachingGroup(click.Group):
    """A group whose help shows SECTIONS; what is in none comes last."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of SECTIONS."""
        known = [name for _, names in SECTIONS for name in names]
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: known.index(name) if name in known else len(known))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """After the commands, which most readers look for."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list a section."""
        listed: set[str] = set()
        for title, names in SECTIONS:
            self._section(formatter, title, names)
            listed.update(names)
        rest = tuple(name for name in self.list_commands(ctx) if name not in listed)
        self._section(formatter, "Others", rest)

    def _section(self, formatter: click.HelpFormatter, title: str, names: tuple[str, ...]) -> None:
        found = [(name, self.commands[name]) for name in names if name in self.commands]
        rows = [
            (name, command.get_short_help_str(limit=100))
            for name, command in found
            if not command.hidden
        ]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


@click.command("help")
@click.argument("command", required=False)
@click.pass_context
def show_help(context: click.Context, command: str | None) -> None:
    """
    Explain Gear, or one command.

    \b
        gear help
        gear help restore
    """
    root = context.find_root()
    group = root.command
    assert isinstance(group, click.Group)
    if command is None:
        print(group.get_help(root))
        return
    found = group.get_command(root, command)
    if found is None:
        raise click.UsageError(f"no such command: {command!r}; `gear help` lists them", ctx=root)
    print(found.get_help(click.Context(found, info_name=command, parent=root)))
