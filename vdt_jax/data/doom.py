"""Clips of ViZDoom (Kempka et al. 2016, arXiv 1605.02097): a random player in a scenario of the game.

The engine and Freedoom's data come with the extra `vizdoom`. The engine starts as a separate process, once per thread.
"""

import itertools
import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vdt_jax.data.clips import Clip
from vdt_jax.errors import UserError

SCENARIOS = (
    "basic",
    "deadly_corridor",
    "deathmatch",
    "defend_the_center",
    "defend_the_line",
    "health_gathering",
    "health_gathering_supreme",
    "my_way_home",
    "predict_position",
    "take_cover",
)
_SKIPPED = 24  # tics at the start of a clip, in which weapons are raised
_DECISION = 3  # tics from one decision of the player to the next
_HELD = (2, 9)  # decisions that an action lasts: from the first number to below the second
_TURNED = 8  # decisions that a turn away from a wall lasts
_BLOCKED = 4.0  # map units from one decision to the next; walking makes 20 and more
_HELD_OUT_SEED = 2**30  # the seed of the first held-out clip


def actions_of(buttons: Collection[str]) -> list[tuple[str, ...]]:
    """The combinations of a scenario's buttons that the random player presses."""
    turn = "TURN" if "TURN_LEFT" in buttons else "MOVE"
    axes = (("", "MOVE_FORWARD"), ("", f"{turn}_LEFT", f"{turn}_RIGHT"), ("", "ATTACK"))
    usable = [[button for button in axis if button in buttons or not button] for axis in axes]
    return [tuple(filter(None, pressed)) for pressed in itertools.product(*usable)]


class RandomPlayer:
    """A random policy with action repeat: mostly forward, and away from walls.

    Args:
      actions: see `actions_of`.
      rng: the source of all choices.
    """

    def __init__(self, actions: Sequence[tuple[str, ...]], rng: np.random.Generator):
        self._actions, self._rng = actions, rng
        self._action, self._left = 0, 0
        self._position: Sequence[float] = (np.inf, np.inf)

    def act(self, position: Sequence[float]) -> int:
        """The decision of a player at a position (x, y): the number of the action that follows."""
        moved = np.abs(np.subtract(position, self._position)).max()
        blocked = moved < _BLOCKED and "MOVE_FORWARD" in self._actions[self._action]
        self._position = position
        if blocked or not self._left:
            weights = np.array([_weight(action, blocked) for action in self._actions])
            self._action = int(self._rng.choice(len(weights), p=weights / weights.sum()))
            self._left = _TURNED if blocked else int(self._rng.integers(*_HELD))
        self._left -= 1
        return self._action


def _weight(action: tuple[str, ...], blocked: bool) -> float:
    """How often an action is drawn, relative to the others."""
    forward, sideways = "MOVE_FORWARD" in action, any(button.endswith(("_LEFT", "_RIGHT")) for button in action)
    if blocked:
        return float(sideways and not forward)
    return (0.8 if forward else 0.2) * (0.25 if sideways else 0.5) * (0.2 if "ATTACK" in action else 0.8)


class Vizdoom:
    """Clips of a scenario: the screen resized, (F, H, W, 3) uint8.

    Clip n is played with seed n, and held-out clip n with seed 2^30 + n; the same seed gives the same clip. A clip also
    has `actions`, (F,): the number of the action after each frame. After an episode that ends, a new one follows.

    Args:
      shape: (F, H, W, 3).
      split: `train` or `held_out`.
      scenario: one of SCENARIOS.
      num_clips: length of the source.
      stride: tics of the game, which has 35 per second, from one frame to the next.

    Attributes:
      actions: names of the actions: buttons joined by `+`.

    Raises:
      UserError: an unknown scenario, a wrong number of channels, no clips, a stride < 1, or no package vizdoom.
    """

    num_classes = 1
    classes = ("",)
    generated = True
    crop = "none: the screen of 160x120, resized (bicubic, antialiased)"

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        split: str,
        scenario: str = "",
        num_clips: int = 2**20,
        stride: int = 1,
    ):
        if scenario not in SCENARIOS:
            raise UserError(f"no scenario '{scenario}' of vizdoom: choose from {', '.join(SCENARIOS)}")
        if shape[3] != 3:
            raise UserError(f"in_channels must be 3 for clips of vizdoom, got {shape[3]}")
        if num_clips < 1:
            raise UserError(f"num_clips must be >= 1, got {num_clips}")
        if stride < 1:
            raise UserError(f"data.stride must be >= 1, got {stride}")
        self._shape, self._scenario, self._num_clips, self._stride = shape, scenario, num_clips, stride
        self._first_seed = _HELD_OUT_SEED if split == "held_out" else 0
        self._engines = threading.local()
        self._buttons = [button.name for button in self._configured().get_available_buttons()]
        self._presses = actions_of(self._buttons)
        self.actions = ["+".join(pressed) or "NOTHING" for pressed in self._presses]

    def __len__(self) -> int:
        return self._num_clips

    def clip(self, number: int, rng: np.random.Generator | None = None) -> Clip:
        """See `Source`; a clip is a function of its number, `rng` is not used.

        Raises:
          UserError: the engine does not start, or ended.
        """
        seed = self._first_seed + number
        try:
            frames, actions = self._play(seed)
        except Exception as error:  # the engine's have no class in common
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"the engine of vizdoom:{self._scenario} does not start or ended ({reason[0]}): "
                "try python -c 'import vizdoom; vizdoom.DoomGame().init()'"
            ) from None
        height, width = self._shape[1:3]
        pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        return {"video": np.stack([np.asarray(picture) for picture in pictures]), "label": 0, "actions": actions}

    def _play(self, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The screens (120, 160, 3) and the actions of a clip."""
        if not hasattr(self._engines, "game"):
            self._engines.game = self._configured()
            self._engines.game.init()
        game, player = self._engines.game, RandomPlayer(self._presses, np.random.default_rng(seed))
        game.set_seed(seed)
        game.new_episode()
        frames, actions, action = [], [], 0
        for tic in range(_SKIPPED + (self._shape[0] - 1) * self._stride + 1):
            if game.is_episode_finished():
                game.new_episode()
            state = game.get_state()
            if tic % _DECISION == 0:
                action = player.act(state.game_variables)
            if tic >= _SKIPPED and (tic - _SKIPPED) % self._stride == 0:
                frames.append(state.screen_buffer)
                actions.append(action)
            game.make_action([button in self._presses[action] for button in self._buttons])
        return frames, np.array(actions)

    def _configured(self) -> Any:
        """An engine that is not started yet."""
        try:
            import vizdoom  # an optional extra  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(
                f"data source vizdoom:{self._scenario} needs the package vizdoom: "
                "pip install -e '.[vizdoom]' -c constraints.txt"
            ) from None
        game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / f"{self._scenario}.cfg"))
        game.set_doom_config_path(os.devnull)  # otherwise written to the current folder
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_render_hud(False)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_available_game_variables([vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y])
        game.set_episode_timeout(0)
        return game
