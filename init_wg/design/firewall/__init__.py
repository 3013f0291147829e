"""What may leave the pod: the policy, and its text."""
