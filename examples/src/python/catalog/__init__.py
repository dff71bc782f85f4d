"""What is sold, and for how much: a library that both programs share."""
