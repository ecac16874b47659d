"""Phase 8: compress a small language model in three gated stages, and measure what is left.

from phase8 import CompressionConfig, FinalCompressionPhase
result = await FinalCompressionPhase(CompressionConfig()).run("embedded:reference")
"""

from phase8.api import CompressionOrchestrator, FinalCompressionPhase
from phase8.config import CompressionConfig
from phase8.errors import Phase8Error

__all__ = ["CompressionConfig", "CompressionOrchestrator", "FinalCompressionPhase", "Phase8Error"]
