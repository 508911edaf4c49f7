"""Draws the speed-ups of an int8-cuda-bench record as an SVG bar chart.

    python3 tools/plot_gpu_bench.py RECORD.json OUT.svg
"""

import json
import sys


def main():
    record, out = sys.argv[1:3]
    with open(record) as file:
        document = json.load(file)
    rows = [r for r in document["records"] if r["auto"] and abs(r["outlier_share"] - 0.001) < 1e-6]
    left, height, scale = 190, 24, 220
    width, total = left + int(scale * 2.4), height * len(rows) + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{total}" fill="white"/>',
        f'<text x="10" y="20" font-size="14">LLM.int8() against cuBLASLt fp16, {document["device"]}, 0.1 % outlier columns</text>',
    ]
    for mark in (0.5, 1.0, 1.5, 2.0):
        x, colour = left + mark * scale, "black" if mark == 1.0 else "#cccccc"
        parts.append(f'<line x1="{x}" y1="36" x2="{x}" y2="{total - 24}" stroke="{colour}"/>')
        parts.append(f'<text x="{x}" y="{total - 8}" text-anchor="middle">{mark}x</text>')
    for i, row in enumerate(rows):
        y, speed = 40 + i * height, row["speed_up"]
        fill = "#2b7a3d" if speed >= 1 else "#b03030"
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">M={row["m"]}, {row["n"]}x{row["k"]}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{speed * scale:.1f}" height="{height - 6}" fill="{fill}"/>')
        parts.append(f'<text x="{left + 6}" y="{y + 14}" fill="white">{speed:.2f}</text>')
    parts.append("</svg>")
    with open(out, "w") as file:
        file.write("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
