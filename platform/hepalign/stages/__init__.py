"""What each of the three trainings optimises and how it is judged."""
