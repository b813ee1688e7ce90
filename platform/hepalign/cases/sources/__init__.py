"""Where cases come from: imported medical files and pairs simulated from a real CT."""
