"""The server side: Flower strategies, the arm runner and the participant grid."""
