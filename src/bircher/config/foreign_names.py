"""Names of settings and options in other Muesli, MuZero and PPO code, with the names here.

The table serves the errors about unknown settings and options, and the page of the documentation.
"""

from __future__ import annotations

ENVIRONMENT = "the environment is the first argument"

_NAMES_ELSEWHERE = {
    # The run
    "env.id": "game env_id env_name environment_id",
    "steps": (
        "total_timesteps total_steps max_steps_total max_env_step total_env_steps num_env_steps total_transitions"
    ),
    "steps and optimizer.updates_per_step": "training_steps",
    "episodes": "max_episodes num_episodes n_episodes total_episodes",
    "seed": "random_seed",
    "device=gpu": "cuda use_gpu train_on_gpu",
    "agent": "algo algorithm --agent --algo",
    "checkpoint.every_seconds": "checkpoint_interval save_interval save_freq",
    "evaluation.count": "eval_freq eval_interval",
    "evaluation.episodes": "eval_episodes n_eval_episodes test_episodes n_evaluator_episode",
    # Environments
    "env.num_envs": "n_envs num_envs num_actors num_environments parallel_agents collector_env_num",
    "env.num_workers": "num_workers",
    "env.num_threads": "num_threads",
    "env.max_steps": "max_moves max_episode_steps max_episode_length max_episode_frames time_limit",
    "env.action_repeat": "frame_skip frameskip",
    "env.stack": "frame_stack framestack n_stack num_stacked_frames frame_stack_num stacked_observations",
    "env.reward_clip=1": "clip_rewards clip_reward reward_clipping",
    "env.options": "env_kwargs",
    "env.protocol": "sticky_actions repeat_action_probability full_action_space noop_max",
    "observation.gray": "gray_scale grayscale",
    "observation.size": "resize screen_size observation_shape",
    "agent.normalize_observations": "normalize_obs norm_obs normalize_observation normalize_input",
    # The agent
    "agent.gamma": "discount discount_factor gamma",
    "agent.returns.lambda": "gae_lambda td_lambda retrace_lambda lam",
    "agent.returns.steps": "td_steps n_step",
    "agent.returns.kind=gae": "use_gae",
    "agent.returns.kind=v_trace": "vtrace",
    "agent.clip.ratio": "clip_range clip_coef clip_eps clip_ratio clip_epsilon ppo_clip",
    "agent.clip.value": "clip_range_vf clip_vloss vf_clip_coef",
    "agent.advantage.normalization": "norm_adv normalize_advantage normalize_advantages",
    "agent.cmpo.clip_bound": "cmpo_clip cmpo.clip advantage_clip advantage_clip_min advantage_clip_max",
    "agent.cmpo.samples": "num_cmpo_samples cmpo_samples",
    "agent.advantage.decay": "beta_var variance_decay",
    "agent.target_update_rate": (
        "tau polyak ema_tau target_tau target_ema alpha_target target_network_update_rate target_update_freq "
        "target_update_interval target_model_interval"
    ),
    "agent.temperature.values": "temperature fixed_temperature_value visit_softmax_temperature",
    "agent.temperature.moves": "temperature_threshold",
    "agent.temperature.changes": "manual_temperature_decay threshold_training_steps_for_final_temperature",
    "agent.random_action_share": "random_exploration_rate eps_greedy",
    "agent.reanalyze_fraction": "reanalyze_ratio revisit_policy_search_rate",
    "agent.returns.bootstrap=network": "use_last_model_value",
    # Loss terms
    "losses.entropy.weight": (
        "ent_coef entropy_coef entropy_coeff entropy_cost entropy_loss_weight policy_entropy_weight "
        "policy_entropy_loss_weight"
    ),
    "losses.value.weight": "vf_coef value_coef value_loss_coef",
    "losses.value.weight and losses.model_value.weight": "value_loss_weight value_loss_coeff",
    "losses.model_reward.weight": "reward_loss_weight reward_loss_coeff reward_pred_coef",
    "losses.policy.weight and losses.model_policy.weight": "policy_loss_weight policy_loss_coeff",
    "losses.policy_gradient.weight": "pg_coef",
    "losses.consistency.weight": "ssl_loss_weight consistency_coeff consistency_coef self_supervised_learning_loss",
    "losses.cmpo.weight": "kl_coef cmpo.kl_coef cmpo_coef cmpo_weight cmpo_loss_weight lambda_cmpo",
    "losses.model_policy.weight": "policy_pred_coef",
    "losses.model_value.weight": "value_pred_coef",
    # The search
    "search.num_simulations": "simulations num_simulations n_simulations mcts_simulations",
    "search.max_considered_actions": "max_num_considered_actions max_considered_actions_num num_top_actions",
    "search.dirichlet_alpha": "root_dirichlet_alpha dirichlet_noise_alpha",
    "search.dirichlet_share": (
        "root_exploration_fraction root_noise_weight root_exploration_eps dirichlet_fraction dirichlet_epsilon"
    ),
    "search.puct_init": "pb_c_init c_puct cpuct",
    "search.puct_base": "pb_c_base",
    "search.visit_offset": "maxvisit_init c_visit",
    "search.value_scale": "c_scale",
    # The network
    "model.support and model.num_atoms": "support_size support_scale",
    "model.num_atoms": "categorical.support_size categorical.num_atoms num_bins value_support_size reward_support_size",
    "model.support": (
        "value_support_range reward_support_range v_min v_max value_min value_max categorical.value_min "
        "categorical.value_max"
    ),
    "model.unroll_steps": "num_unroll_steps k_unroll unroll_depth imagination_steps",
    "model.latent_gradient_scale": "dynamics_grad_scale",
    "model.latent_width": "encoding_size latent_state_dim latent_dim hidden_state_size",
    "model.torso_widths": "hidden_size hidden_sizes fc_representation_layers",
    "model.torso_widths and model.head_widths": "net_arch",
    "model.dynamics_widths": "fc_dynamics_layers",
    "model.head_widths": "fc_reward_layers fc_value_layers fc_policy_layers",
    "model.channels": "num_channels",
    "model.num_blocks": "num_res_blocks res_blocks",
    "model.halvings": "downsample",
    "model.memory_width": "lstm_hidden_size",
    "model.memory=lstm": "use_lstm recurrent",
    "model.torso": "model_type",
    # Replay
    "replay.fraction": "replay_fraction off_policy_fraction",
    "replay.capacity": "buffer_size replay_buffer_size replay_size replay_capacity memory_size window_size",
    "replay.priority_exponent": "per_alpha priority_alpha priority_prob_alpha use_priority per",
    "replay.importance_exponent": "per_beta priority_beta priority_prob_beta",
    # The optimizer and its updates
    "optimizer.learning_rate": "learning_rate lr lr_init",
    "optimizer.final_learning_rate": "anneal_lr lr_decay_rate lr_decay_steps lr_piecewise_constant_decay",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.epsilon": "adam_eps adam_epsilon",
    "optimizer.gradient_clip_bound": "max_grad_norm grad_clip grad_clip_value clip_grad_norm",
    "optimizer.batch_size": "batch_size minibatch_size mini_batch_size",
    "optimizer.minibatches": "num_minibatches n_minibatches",
    "optimizer.epochs": "n_epochs num_epochs update_epochs ppo_epochs",
    "optimizer.updates_per_step": "update_per_collect replay_ratio utd_ratio gradient_steps train_freq",
    "optimizer.target_kl": "target_kl",
    # Rollouts
    "loop.rollout_length": (
        "unroll_length n_steps num_steps rollout_steps rollout_len sequence_length game_segment_length bptt_horizon"
    ),
    # Options of command lines
    ENVIRONMENT: "--game --env --env-id --env-name --environment --task",
    "--resume": "--checkpoint --load --load-model --restore --resume-from",
    "--out": "--logdir --log-dir --save-dir --output --output-dir --results-path --run-name --exp-name",
    "--config": "--cfg --config-file --config-path",
    "bircher watch": "--render",
    "bircher eval": "--eval --evaluate --test",
}
"""Names in this package, and the names of the same thing in other code, in lower case with underscores.

A name may include the group that it has in other code, such as `cmpo.kl_coef`.  Options begin with `--`; options that
are not in the table are looked up as settings.
"""
FOREIGN: dict[str, str] = {name: here for here, names in _NAMES_ELSEWHERE.items() for name in names.split()}
"""Names in other code, with what replaces them: a setting, a setting with a value, two settings joined by "and", an
option of `bircher train`, or a command."""


def of_setting(name: str) -> str | None:
    """Return what replaces the name of a setting in other code, or None.

    The name is looked up with all of its groups, then with one group fewer at a time: `trainer.cmpo.kl_coef`,
    `cmpo.kl_coef`, `kl_coef`.
    """
    parts = _normalized(name[-200:]).split(".")
    return next((found for start in range(len(parts)) if (found := FOREIGN.get(".".join(parts[start:])))), None)


def settings_in(target: str) -> list[str]:
    """Return the settings in a target of the table, without their values."""
    return [part.partition("=")[0] for part in target.split(" and ")]


def of_option(option: str) -> str | None:
    """Return what replaces a command-line option of other code, or None: an option, a command or a setting."""
    dashed = option.lower().replace("_", "-")
    return FOREIGN.get(dashed) or FOREIGN.get(_normalized(option.lstrip("-")))


def _normalized(name: str) -> str:
    """Return a name in lower case, with underscores between words and dots between groups."""
    return name.strip().lower().replace("-", "_").replace(" ", "_").replace("/", ".")
