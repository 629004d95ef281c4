"""From anomalies to predictions and alerts, and the models' life: labels, training, evaluation, promotion, drift."""
