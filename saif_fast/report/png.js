// Draws the figures one after the other, and leaves each as an image in the document.
(async () => {
  const place = document.getElementById("figures");
  const { figures, width, scale } = JSON.parse(place.querySelector("script").textContent);

  for (const { name, title, data, layout, height } of figures) {
    const traces = themed(data).map((trace) =>
      trace.type === "heatmap" ? { ...trace, showscale: true } : trace,
    );
    const tall = height + 60;
    const drawn = {
      data: traces,
      layout: {
        ...themed(layout),
        title: { text: title, x: 0.02, font: { size: 16 } },
        margin: { ...layout.margin, t: 56 },
        showlegend: traces.some((trace) => trace.name !== undefined),
        legend: { font: { size: 12 } },
        paper_bgcolor: themed("--paper"),
        plot_bgcolor: themed("--paper"),
      },
    };
    const image = document.createElement("img");
    image.dataset.name = name;
    image.src = await Plotly.toImage(drawn, { format: "png", width, height: tall, scale });
    place.append(image);
  }
})();
