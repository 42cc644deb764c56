"""What other tools count of a layer, as it stands in the document of `stones inspect --peers`."""

from __future__ import annotations

from profiles.schemas.vocabulary import BOOLEAN, COUNT, STRING, about, array, mapping, nullable, record, word

_COUNT = nullable(
    record(
        {
            "value": about(COUNT, "as the tool says it"),
            "unit": word("MAC", "FLOP", "element", "MAC + element"),
            "as_flops": about(nullable(COUNT), "a MAC as 2 FLOPs, where the unit tells what is one"),
        }
    )
)
PEERS = about(
    nullable(
        array(
            record(
                {
                    "name": STRING,
                    "version": nullable(STRING),
                    "installed": BOOLEAN,
                    "forward": _COUNT,
                    "backward": _COUNT,
                    "params": nullable(COUNT),
                    "uncounted": about(mapping(COUNT), "operations that the tool itself says it does not count"),
                    "error": STRING,
                    "why": about(STRING, "why it is not what is executed here, or equal"),
                }
            )
        )
    ),
    "what other tools count",
)
