"""The networks, registered in BasicSR's ARCH_REGISTRY: importing this package imports every `*_arch.py` beside it.

To add a network, add one file `NAME_arch.py` here; nothing else needs to know it:

    @dataclass(frozen=True, kw_only=True)
    class NAMEOptions(ChainOptions, NetworkOptions):
        num_group: int = 4
        \"\"\"Accumulation groups.\"\"\"

    @ARCH_REGISTRY.register()
    class NAME(nn.Module):
        @takes(NAMEOptions)
        def __init__(self, options: NAMEOptions) -> None:
            super().__init__()
            self.head = nn.Conv2d(options.num_in_ch, options.num_feat, 3, padding=1)
            ...

- The options are a dataclass: NetworkOptions (archs/options.py) has the images' channels, the width and the scale,
  ChainOptions (nn/options.py) the binarizers and the accumulation; ConvOptions is for a body with groups of its own.
  A field that is declared again has another default. Each field has a type and a sentence: both are what a user gets.
- `takes` turns the fields into keywords. So `NAME(num_feat=32)` and `network_g: {type: NAME, num_feat: 32}` work, and
  option files are checked: unknown keys, types, near names.
- The body is built by `options.chain(...)`, other convolutions by `body_conv`; `forward` is plain calls, without
  branches on values, since conversion traces it.
- Then `bam train`, `bam test`, `bam profile NAME`, `bam options --network NAME` and `bam convert` know the network. A
  row in the table of tests/archs lets the tests walk it.
"""

from bam_plugin.toolbox.compat import import_registered

import_registered(__name__, "_arch")
