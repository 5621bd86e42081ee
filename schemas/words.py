"""The closed vocabularies that agents share: colours, places, directions, sizes, speeds."""

from typing import Literal, get_args

Colour = Literal["black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
"""The eleven basic colour terms of English (Berlin and Kay 1969)."""

Place = Literal["left", "right", "top", "bottom", "middle"]
"""Thirds of the frame; `middle` is the centre third on both axes."""

Direction = Literal["left", "right", "up", "down", "toward", "away", "none"]
"""Where an object goes in the image plane; toward and away of the camera are told by growing and shrinking masks."""

Size = Literal["small", "medium", "large"]
"""Median mask area as a share of the frame: under 3 %, under 15 %, and above."""

Speed = Literal["still", "slow", "moderate", "fast"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
