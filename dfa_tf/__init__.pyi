# The module of each public name. `__init__.py` loads it at first use; type checkers and editors read this file too.
from . import plugins as plugins
from .aggregation.search import search as search
from .aggregation.weights import AggregationWeights as AggregationWeights
from .config.configuration import Config as Config
from .distillation.distil import distil as distil
from .distillation.distiller import Distiller as Distiller
from .errors import UserError as UserError
from .images.sources import source as source
from .images.splits import split as split
from .methods.base import Method as Method
from .networks.ensemble import ensemble as ensemble
from .networks.features import FeatureModel as FeatureModel
from .networks.features import Features as Features
from .pipeline.compress import compress as compress

__version__: str
