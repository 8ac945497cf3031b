"""The methods: one LightningModule per file."""

from ltbench.methods.cbgan.method import CBGAN
from ltbench.methods.csst import CSST
from ltbench.methods.decoupled import LWS, ClassMeans, LogitAdjustment, TauNormalisation
from ltbench.methods.deit_lt.method import DeiTLT
from ltbench.methods.erm import ERM
from ltbench.methods.fixmatch import FixMatch
from ltbench.methods.mislas import MiSLAS
from ltbench.methods.paco import PaCo
from ltbench.methods.ride import RIDE
from ltbench.methods.selmix.method import SelMix

__all__ = [
    "CBGAN",
    "CSST",
    "ERM",
    "LWS",
    "RIDE",
    "ClassMeans",
    "DeiTLT",
    "FixMatch",
    "LogitAdjustment",
    "MiSLAS",
    "PaCo",
    "SelMix",
    "TauNormalisation",
]
