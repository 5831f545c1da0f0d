"""The arena: two anonymous models answer a visitor's prompt, the visitor votes, and a leaderboard shows the ratings."""
