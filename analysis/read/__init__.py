"""From run folders to data frames: what lies there, the cache, the jobs and their arms."""
