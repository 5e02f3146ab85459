"""What a run is: its folder, its start and resumption, and what stands around the loop."""
