"""The ids that are known without asking a package for them, by backend, and the names of presets."""

from __future__ import annotations

BACKENDS = ("toys", "gymnax", "pgx", "envpool", "gymnasium")

TOYS = (
    "toy/counter", "toy/counter-truncated", "toy/bandit", "toy/chain", "toy/cliff", "toy/catch", "toy/recall",
    "toy/nim",
)  # fmt: skip

# Classic control with discrete actions runs in gymnax, where acting and learning are one program: its physics, limits
# and rewards equal Gymnasium's (tests/envs/test_gymnax.py compares them). MNISTBandit-bsuite is left out, since it
# downloads data.
GYMNAX = (
    "CartPole-v1", "Acrobot-v1", "MountainCar-v0",
    "Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar",
    "Catch-bsuite", "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite",
    "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc",
    "BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc",
)  # fmt: skip

PGX = (
    "tic_tac_toe", "connect_four", "othello", "hex", "go_9x9", "go_19x19", "gardner_chess", "chess", "animal_shogi",
    "shogi", "2048",
)  # fmt: skip

PGX_REFUSED = {
    "bridge_bidding": "it has 4 players, and at most 2 are supported",
    "sparrow_mahjong": "it has 3 players, and at most 2 are supported",
    "backgammon": "it has dice, and of games with chance only those of one player are supported",
    "kuhn_poker": "its players hide cards from each other, which is not supported",
    "leduc_holdem": "its players hide cards from each other, which is not supported",
}
"""Games that pgx has, and why they cannot be played here."""

ENVPOOL = (
    "LunarLander-v3", "LunarLander-v2", "LunarLanderContinuous-v3", "LunarLanderContinuous-v2", "BipedalWalker-v3",
    "BipedalWalkerHardcore-v3", "CarRacing-v3", "CarRacing-v2", "CartPole-v0", "CartPole-v1", "Acrobot-v1",
    "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v0", "Pendulum-v1",
)  # fmt: skip

PRESETS = {
    "toy/recall": "recall",
    "CartPole-v1": "cartpole",
    "Acrobot-v1": "acrobot",
    "LunarLander-v3": "lunarlander",
    "Breakout-MinAtar": "minatar",
    "Freeway-MinAtar": "minatar",
    "SpaceInvaders-MinAtar": "minatar",
    "Asterix-MinAtar": "minatar",
    "Seaquest-MinAtar": "minatar",
    "tic_tac_toe": "board_games",
    "connect_four": "board_games",
    "othello": "board_games",
    "hex": "board_games",
    "go_9x9": "board_games",
}
