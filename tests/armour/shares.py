"""How many examples each test of this folder tries."""

SLOW = {
    "test_fit": 1300,
    "test_fit_of_every_method": 900,
    "test_partial_fit": 500,
    "test_predictions": 900,
    "test_parameters": 2000,
    "test_attacks_on_tensors": 1000,
    "test_attacks_generate": 700,
    "test_attack_parameters": 1000,
    "test_scores": 600,
    "test_scoring_names": 800,
    "test_report_requests": 300,
    "test_reports_as_json": 800,
    "test_files_with_wrong_bytes": 1000,
    "test_files_with_another_header": 1500,
    "test_files_with_another_table": 600,
    "test_checkpoints": 300,
    "test_forged_checkpoints": 400,
    "test_idx_files": 800,
    "test_npz_files": 800,
    "test_image_folders": 800,
    "test_cifar_files": 200,
    "test_recipes": 500,
}
"""With ``-m slow``: more than 10,000 together."""

FAST = {name: max(6, round(0.025 * share)) for name, share in SLOW.items()}
"""In every run of the tests."""
