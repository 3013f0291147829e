"""The packets that may leave the pod: the policy, and its text."""
