"""The life of a supervisor process: started, watched, restarted, and its folder kept."""
