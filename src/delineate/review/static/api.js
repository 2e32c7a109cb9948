// The server's answers. Whatever goes wrong is an Error with one line for the person; `status` is HTTP's.

async function send(method, path, body) {
  let response
  try {
    response = await fetch(`/api${path}`, {
      method,
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    })
  } catch {
    throw Object.assign(new Error('the server does not answer; is delineate review still running?'), { status: 0 })
  }
  if (!response.ok) throw await problem(response)
  return response
}

async function problem(response) {
  let line = `${response.status} ${response.statusText}`
  let told = null
  try {
    told = (await response.json()).detail
  } catch {
    // no JSON: the status must do
  }
  if (typeof told === 'string') line = told
  else if (Array.isArray(told)) line = told.map((one) => `${one.loc?.slice(1).join('.')}: ${one.msg}`).join('; ')
  if (response.status === 401) line = 'this page is no longer known here; open the address that delineate review printed'
  return Object.assign(new Error(line), { status: response.status })
}

export const get = async (path) => (await send('GET', path)).json()
export const bytes = async (path) => (await send('GET', path)).arrayBuffer()
export const post = async (path, body) => (await send('POST', path, body)).json()
export const remove = async (path) => (await send('DELETE', path)).json()

// Calls `told` with every state of a running segmentation; ends with the last one.
export async function follow(path, told) {
  const reader = (await send('GET', path)).body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  let last = null
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return last
    text += value
    const events = text.split('\n\n')
    text = events.pop()
    for (const event of events) {
      const data = event.split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trim()).join('')
      if (data) told((last = JSON.parse(data)))
    }
  }
}
