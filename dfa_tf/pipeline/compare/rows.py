"""The rows of a comparison: each is one way to train the student."""

from typing import NamedTuple

from dfa_tf import plugins
from dfa_tf.config import Config
from dfa_tf.errors import UserError, nearest


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: as the table shows it.
        methods: the distillation methods; none for the plain student.
        overrides: further changes of the configuration, `"key.path=value"` each.
    """

    name: str
    methods: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Row":
        """Reads `"kd"`, `"dfa+kd"`, `"plain"`, or with a name and overrides `"last: dfa; distil.aggregation=last"`.

        Raises:
            UserError: if a method is unknown or the text is none of these.
        """
        label, colon, rest = text.partition(":")
        what, *overrides = (part.strip() for part in (rest if colon else text).split(";"))
        methods = () if what == "plain" else tuple(what.split("+"))
        for method in methods:
            if method not in (known := [*plugins.names("losses"), "plain"]) or method == "plain":
                raise UserError(f"a row is plain, or methods joined by +. Received: {method!r} in {text!r}. {nearest(method, known)}")
        name = label.strip() if colon else what
        if bool(overrides) != bool(colon) or not name or not all(part.isalnum() or part in "+-_." for part in name):
            raise UserError(
                f"a row with overrides reads NAME: METHODS; KEY=VALUE; ..., with a name of letters, digits and +-_. Received: {text!r}"
            )
        return cls(name, methods, tuple(overrides))

    def config(self, base: Config, seed: int) -> Config:
        """The configuration of this row's student with a seed.

        All students have the training images of the base's seed, which the teacher was trained on. A method keeps the weight and
        the options that the base gives it.
        """
        distil = base.distil
        changes = {
            "seed": seed,
            "data.seed": base.data_seed,
            "distil.methods": {name: distil.methods.get(name) for name in self.methods},
            "distil.options": {name: distil.options[name] for name in self.methods if name in distil.options},
            "distil.warmup_epochs": {name: distil.warmup_epochs[name] for name in self.methods if name in distil.warmup_epochs},
        }
        return base.replace(changes).override(self.overrides)
