"""Jobs for clusters."""
