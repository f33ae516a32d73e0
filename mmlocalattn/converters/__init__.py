"""Official checkpoints to ours: one module per release, and what applies them to files.

:mod:`~mmlocalattn.converters.convert` and :mod:`~mmlocalattn.converters.merge` build models and are
imported by those names; the others need torch alone.
"""
