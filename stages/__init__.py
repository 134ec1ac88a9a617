"""What each command does; one file per command, over the rooms algo, sim, policy, rewards and store."""
