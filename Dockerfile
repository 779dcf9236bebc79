# The server, with nothing of a shop in it: the bundle is mounted, and may be written to where items are to be changed.
#
#     docker build -t recgpt .
#     docker run --publish 127.0.0.1:8000:8000 --volume "$PWD/my_bundle:/bundle" --env RECGPT_TOKEN recgpt
FROM python:3.11-slim
WORKDIR /recgpt
COPY requirements.txt requirements-serving.txt ./
# From PyTorch's own index, whose wheels for the CPU are a fraction of those with CUDA.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -r requirements.txt -r requirements-serving.txt
COPY *.py ./
COPY utils utils
COPY data_processing data_processing
COPY serving serving
# Who owns the mounted bundle may have to be named instead: docker run --user "$(id -u)".
RUN useradd --no-create-home recgpt
USER recgpt
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://localhost:8000/health')"]
ENTRYPOINT ["python", "-m", "serving.server", "/bundle", "--host", "0.0.0.0"]
