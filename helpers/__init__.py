"""What the lessons share and do not teach. Each module can be read in one sitting."""
