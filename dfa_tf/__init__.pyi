# What type checkers and editors read in place of __init__.py, where names are loaded when they are first used.
from dfa_tf import plugins as plugins
from dfa_tf.aggregation import AggregationWeights as AggregationWeights
from dfa_tf.compression import compress as compress
from dfa_tf.config import Config as Config
from dfa_tf.distillation import distil as distil
from dfa_tf.distiller import Distiller as Distiller
from dfa_tf.ensemble import ensemble as ensemble
from dfa_tf.errors import UserError as UserError
from dfa_tf.features import FeatureModel as FeatureModel
from dfa_tf.features import Features as Features
from dfa_tf.methods import Method as Method
from dfa_tf.search import search as search
from dfa_tf.sources import source as source
from dfa_tf.splits import split as split

__version__: str
