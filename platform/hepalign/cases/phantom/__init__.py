"""A synthetic abdomen with MR, CT, breathing, a probe and exactly known truth."""
