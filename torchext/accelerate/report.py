"""What `accelerate` found and did."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: its path in the model ("" for the model itself).
        kind: its class.
        swapped: whether it was replaced.
        reason: why not, "" if it was.
        calls: the shapes that it was called with in the example, one entry for each call.
        saves: what the fused form of its family does less of, "" if the family is not known.
        before, after: seconds of its calls in the example, as published and accelerated; None where
            it did not run.
    """

    name: str
    kind: str
    swapped: bool
    reason: str = ""
    calls: tuple[str, ...] = ()
    saves: str = ""
    before: float | None = None
    after: float | None = None

    def explained(self, model_seconds: float | None) -> str:
        """One line: its share of the model's time, what the swap gains, and by what.

        Args:
            model_seconds: of the model's run as published, where there was one.
        """
        parts = [f"{self.name or '(model)'} ({self.kind}):"]
        if self.before is not None and model_seconds:
            share = f"{self.before / model_seconds:.0%} of the model's time"
            if self.swapped and self.after:
                share += f", {self.before / self.after:.2f}x faster"
                share += f" ({self.before * 1e3:.2f} ms before, {self.after * 1e3:.2f} ms after);"
            else:
                share += ";"
            parts.append(share)
        parts.append(self.saves if self.swapped else f"left: {self.reason}")
        return " ".join(parts)


@dataclass(frozen=True)
class ExampleReport:
    """The model's run on the example.

    Attributes:
        before, after: seconds of one run, as published and accelerated; None where it did not run.
        difference: the largest of the outputs, as a share of the largest value.
        problem: why everything was restored, "" if nothing was.
    """

    before: float
    after: float | None = None
    difference: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"example: {self.problem}; everything was restored"
        if self.after is None:
            return f"example: {self.before * 1e3:.1f} ms, nothing was swapped"
        return (
            f"example: {self.before * 1e3:.1f} ms before, {self.after * 1e3:.1f} ms after,"
            f" largest difference {self.difference:.1e}"
        )


@dataclass
class Report:
    """What `accelerate` found; `print` shows it as a table.

    Attributes:
        layers: the layers that were recognised, in the model's order.
        example: the run on the example, where one was given.
    """

    layers: list[LayerReport] = field(default_factory=list)
    example: ExampleReport | None = None

    @property
    def swapped(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.swapped]

    @property
    def left(self) -> list[LayerReport]:
        return [layer for layer in self.layers if not layer.swapped]

    def explain(self) -> str:
        """What each swap gains and why the others were left, the most expensive layers first.

        Shares of the model's time and gains are those measured on the example; without one, what
        each fused form saves is all that can be told.
        """
        if not self.layers:
            return str(self)
        seconds = None if self.example is None else self.example.before
        rows = sorted(self.layers, key=lambda layer: -(layer.before or 0.0))
        lines = [layer.explained(seconds) for layer in rows]
        if seconds is None:
            lines.append("shares of the model's time and gains: accelerate(model, example=...)")
        else:
            share = sum(layer.before or 0.0 for layer in self.swapped) / seconds
            lines.append(f"swapped layers: {share:.0%} of the model's time")
            lines.append(str(self.example))
        return "\n".join(lines)

    def __str__(self) -> str:
        if not self.layers:
            return "accelerate: no known layer in this model; nothing was changed"
        rows = [
            (layer.name or "(model)", layer.kind, "swapped" if layer.swapped else layer.reason)
            for layer in self.layers
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        lines.append(f"accelerate: {len(self.swapped)} swapped, {len(self.left)} left as they were")
        if self.example is not None:
            lines.append(str(self.example))
        return "\n".join(lines)
