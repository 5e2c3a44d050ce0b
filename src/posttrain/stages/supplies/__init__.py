"""What a train stage learns from: demonstrations, answers that it draws itself (rollouts), or both in each step."""
